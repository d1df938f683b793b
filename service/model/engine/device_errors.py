"""Classifies a runtime's error message: device out of memory, device lost, or neither.

ONNX Runtime raises one exception for every failure of a run, so only its message distinguishes them. It quotes CUDA
(``CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; …``), its libraries and ONNX Runtime.
"""

import re
from typing import Final

from service.errors import DeviceLost, DeviceOutOfMemory, InferenceFailed

_OUT_OF_MEMORY: Final = re.compile(
    r"\bCUDA (?:failure|error) 2\b"
    r"|out of memory"
    r"|cudaErrorMemoryAllocation"
    r"|CUDA_ERROR_OUT_OF_MEMORY"
    r"|(?:CUBLAS|CUDNN)_STATUS_ALLOC_FAILED"
    r"|Failed to allocate memory for requested buffer"
    r"|is smaller than requested bytes of"
    r"|std::bad_alloc|bad allocation",
    re.IGNORECASE,
)

# After these every later call into the CUDA context fails too; see cudaError_t in the CUDA Runtime API.
_STICKY_CODES: Final = {
    46: "devices unavailable",
    214: "uncorrectable ECC error",
    220: "NVLink error",
    700: "illegal address",
    702: "launch timed out",
    709: "context is destroyed",
    710: "device-side assert",
    714: "hardware stack error",
    715: "illegal instruction",
    716: "misaligned address",
    717: "invalid address space",
    718: "invalid program counter",
    719: "launch failure",
    721: "contained by the hardware",
}
_LOST: Final = re.compile(
    rf"\bCUDA (?:failure|error) (?:{'|'.join(map(str, _STICKY_CODES))})\b"
    r"|illegal memory access"
    r"|illegal instruction was encountered"
    r"|misaligned address"
    r"|unspecified launch failure"
    r"|device-side assert"
    r"|uncorrectable (?:NVLink|ECC) error"
    r"|launch timed out"
    r"|GPU (?:is|has been) lost|device (?:was |has been )?lost"
    r"|CUDA_ERROR_(?:ILLEGAL_ADDRESS|LAUNCH_FAILED|ECC_UNCORRECTABLE|HARDWARE_STACK_ERROR)"
    r"|cudaError(?:IllegalAddress|LaunchFailure|ECCUncorrectable|HardwareStackError)",
    re.IGNORECASE,
)


def inference_error(message: str) -> InferenceFailed:
    """Return this service's error for a run that failed with `message`, which is not repeated."""
    # A lost device may also report a failed allocation, so that check comes first.
    if _LOST.search(message):
        return DeviceLost("The device that runs the model has failed.")
    if _OUT_OF_MEMORY.search(message):
        return DeviceOutOfMemory("The device has too little memory at this moment.")
    return InferenceFailed("The model could not be run on this input.")
