import pytest

from service.errors import DeviceLost, DeviceOutOfMemory, InferenceFailed
from service.model.engine.device_errors import inference_error

_FAILURE = "CUDA failure {}: {} ; GPU=0 ; hostname=h ; file=cuda_call.cc ; line=123 ; expr=cudaStreamSynchronize(s)"


@pytest.mark.parametrize(
    "message",
    [
        _FAILURE.format(2, "out of memory"),
        "[ONNXRuntimeError] : 6 : EXCEPTION : Failed to allocate memory for requested buffer of size 8589934592",
        "Available memory of 5 is smaller than requested bytes of 9",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
        "CUDNN failure 5000: CUDNN_STATUS_ALLOC_FAILED ; GPU=0",
        "std::bad_alloc",
    ],
)
def test_out_of_memory_may_be_tried_again_with_less(message: str) -> None:
    """Whether the driver, a library or the arena says it."""
    assert DeviceOutOfMemory is type(inference_error(message))


@pytest.mark.parametrize(
    "message",
    [
        _FAILURE.format(700, "an illegal memory access was encountered"),
        _FAILURE.format(719, "unspecified launch failure"),
        _FAILURE.format(710, "device-side assert triggered"),
        _FAILURE.format(214, "uncorrectable ECC error encountered"),
        _FAILURE.format(715, "wording of another release"),
        "CUDA error cudaErrorIllegalAddress:an illegal memory access was encountered; out of memory",
    ],
)
def test_a_sticky_error_loses_the_device(message: str) -> None:
    """Every later call in that process fails too, whatever else the message says."""
    assert DeviceLost is type(inference_error(message))


@pytest.mark.parametrize(
    "message",
    [
        "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions for input: pixels",
        _FAILURE.format(1, "invalid argument"),
        _FAILURE.format(7000, "no such code"),
        "",
    ],
)
def test_any_other_failure_is_of_this_input(message: str) -> None:
    """And the message, which may speak of the inside, is not repeated."""
    error = inference_error(message)
    assert InferenceFailed is type(error)
    assert "The model could not be run on this input." == error.detail
