"""Post-training quantisation (FP8Test): a trained model's linear layers in 8 bits, measured against the model as it was.

    quantization = prepare_quantization(params)     find and verify the source run, load data and weights
    record = quantization.run(journal)              every way to quantise on test images, every layer on validation images

`schemes` defines quantised weights and layers, `trained_model` loads the run, `safetensors` writes and reads exported models.
"""

from vitfp8.ptq.experiment import Quantization, check_quantization, prepare_quantization
from vitfp8.ptq.safetensors import load_quantized, save_quantized
from vitfp8.ptq.schemes import (
    FORMATS_AFTER_TRAINING,
    QuantizedWeight,
    Scheme,
    block_layers,
    calibrate,
    quantize_weight,
    quantized,
)

__all__ = [
    "FORMATS_AFTER_TRAINING",
    "Quantization",
    "QuantizedWeight",
    "Scheme",
    "block_layers",
    "calibrate",
    "check_quantization",
    "load_quantized",
    "prepare_quantization",
    "quantize_weight",
    "quantized",
    "save_quantized",
]
