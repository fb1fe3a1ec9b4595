"""Whether records agree with themselves, their files and a repeat; what two records differ in."""
