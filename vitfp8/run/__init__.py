"""From a study to executed notebooks: plan, check, execute."""
