"""Run torchrun on each worker pod of a Ray cluster: the entry point of the RayJob.

python start.py --machines 2 --gpus 8 OPTION… -m model_export train … runs `torchrun OPTION… -m model_export train …` once
a pod, all with one meeting place. The first that fails ends the job, which KubeRay then tries again.
"""

import argparse
import subprocess
import sys

import ray
from ray.util import get_node_ip_address
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

PORT = 29400


def address() -> str:
    """Return the address of the pod that this runs in."""
    return get_node_ip_address()


def torchrun(arguments: list[str]) -> int:
    """Run torchrun in the pod that this runs in; return its exit code."""
    # As a module: a worker of Ray need not have the scripts of its Python on its PATH.
    return subprocess.call([sys.executable, "-m", "torch.distributed.run", *arguments])


def main() -> int:
    """Reserve all GPUs of each pod, and start torchrun there; return the first exit code that is not 0."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--machines", type=int, required=True, help="worker pods")
    parser.add_argument("--gpus", type=int, required=True, help="GPUs of each")
    options, arguments = parser.parse_known_args()

    ray.init()
    pods = placement_group([{"CPU": 1, "GPU": options.gpus}] * options.machines, strategy="STRICT_SPREAD")
    ray.get(pods.ready())
    places = [PlacementGroupSchedulingStrategy(pods, place) for place in range(options.machines)]
    first = ray.get(ray.remote(address).options(scheduling_strategy=places[0]).remote())
    command = [
        f"--nnodes={options.machines}",
        f"--nproc-per-node={options.gpus}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={first}:{PORT}",
        *arguments,
    ]
    # A task that was lost with its pod is not tried alone: the others wait for a new meeting place.
    running = [
        ray.remote(torchrun).options(num_gpus=options.gpus, max_retries=0, scheduling_strategy=place).remote(command)
        for place in places
    ]
    while running:
        (done, *_), running = ray.wait(running)
        if code := ray.get(done):
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
