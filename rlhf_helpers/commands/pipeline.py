"""The command `pipeline compile | run | submit`."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rlhf_helpers.commands.options import add_common

TARGETS = ("portable", "google")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the three subcommands."""
    parser.description = (
        'RLHF as a pipeline of KFP components. Needs the extra: pip install "rlhf-helpers[cloud]".'
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    _add_compile(actions)
    _add_run(actions)
    _add_submit(actions)


def run(options: argparse.Namespace) -> int | None:
    """Compile, run or submit; the exit status is 1 if the pipeline fails."""
    return options.action(options)


def _add_compile(actions: argparse._SubParsersAction) -> None:
    compiling = actions.add_parser("compile", help="write the YAML for Kubeflow or Vertex AI")
    _add_target(compiling)
    compiling.add_argument(
        "--output", type=Path, help="default: pipeline_<target>.yaml in the current folder"
    )
    compiling.set_defaults(action=_compile)


def _add_run(actions: argparse._SubParsersAction) -> None:
    running = actions.add_parser(
        "run",
        help="run the portable pipeline on this machine",
        description="Run the portable pipeline here, and publish its models into "
        "runs/<scale>/<task>/seed<k>/.",
    )
    add_common(running, task=False)
    running.add_argument(
        "--processes", type=int, default=1, help="processes a training step (default: 1)"
    )
    running.add_argument(
        "--cached",
        action="store_true",
        help="reuse steps of the last run whose parameters are the same; files are not compared",
    )
    _add_parameters(running)
    running.set_defaults(action=_run)


def _add_submit(actions: argparse._SubParsersAction) -> None:
    submitting = actions.add_parser(
        "submit",
        help="run a pipeline on Vertex AI",
        description="Run a pipeline on Vertex AI with your application default credentials. Google "
        "bills you for it. L5 explains the set-up.",
    )
    _add_target(submitting)
    submitting.add_argument(
        "--pipeline-root",
        default="",
        metavar="gs://…",
        help="where its artefacts go (default: in the course's bucket)",
    )
    submitting.add_argument(
        "--dry-run", action="store_true", help="print the request and send nothing; no account"
    )
    _add_parameters(submitting)
    submitting.set_defaults(action=_submit)


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target",
        default="portable",
        choices=TARGETS,
        help="portable: ours; google: Google's own component (default: portable)",
    )
    parser.add_argument("--image", help="portable: the container image, see scripts/Dockerfile")
    parser.add_argument(
        "--gpu-type", default="", help="portable: nvidia.com/gpu (Kubeflow), NVIDIA_L4 (Vertex AI)"
    )
    parser.add_argument(
        "--gpu-count", type=int, default=0, help="portable: GPUs of a training step (default: 0)"
    )


def _add_parameters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parameters", type=Path, metavar="FILE", help="parameters, JSON or YAML")
    parser.add_argument(
        "values", nargs="*", metavar="NAME=VALUE", help="single parameters, as in kl_coeff=0.1"
    )


def _pipeline(options: argparse.Namespace) -> Any:
    """Return the pipeline that --target, --image and the GPU options describe."""
    from rlhf_helpers.pipelines import portable, vertex_rlhf

    if options.target == "google":
        return vertex_rlhf.pipeline()
    return portable.make_pipeline(
        options.image or portable.IMAGE, options.gpu_type, options.gpu_count
    )


def _values(options: argparse.Namespace, pipeline: Any) -> dict[str, Any]:
    from rlhf_helpers.pipelines import parameters

    values = parameters.read(options.parameters) if options.parameters else {}
    return values | parameters.parse(options.values, pipeline)


def _compile(options: argparse.Namespace) -> None:
    from rlhf_helpers.pipelines import portable

    output = options.output or Path(f"pipeline_{options.target}.yaml")
    if output.suffix not in (".yaml", ".yml", ".json"):
        raise ValueError(f"--output {output}: the name must end in .yaml or .json")
    print(f"written to {portable.compile_pipeline(output, _pipeline(options))}")


def _run(options: argparse.Namespace) -> int:
    from rlhf_helpers.pipelines import local, portable

    values = {"scale": options.scale, "seed": options.seed}
    values |= _values(options, portable.rlhf_pipeline)
    try:
        found = local.run(values, options.processes, options.cached)
    except local.PipelineFailed as error:
        return _failed(error)
    for name, value in found.metrics.items():
        print(f"  {name:<22}{value:>12.5g}")
    print(f"\nmodels, metrics and logs: {found.folder}")
    return 0


def _submit(options: argparse.Namespace) -> int:
    from rlhf_helpers.cloud import CloudError
    from rlhf_helpers.pipelines import portable, vertex_rlhf
    from rlhf_helpers.pipelines.submit import rented, setup_for, submit

    pipeline = _pipeline(options)
    values = _values(options, pipeline)
    if options.target == "google":
        values = vertex_rlhf.RLHFParameters.from_dict(values).values()
    elif not options.image and not options.dry_run:
        raise ValueError(f"Vertex AI cannot pull {portable.IMAGE}: name an image with --image")
    else:
        print(rented(values, options.gpu_type, options.gpu_count), file=sys.stderr)
    setup = setup_for(values)
    try:
        request = submit(pipeline, values, setup, options.pipeline_root, options.dry_run)
    except CloudError as error:
        return _failed(error)
    if options.dry_run:
        print(json.dumps(request, indent=2))
    else:
        job = request["pipelineJobId"]
        print(
            f"submitted {job}\nhttps://console.cloud.google.com/vertex-ai/pipelines/locations/"
            f"{setup.region}/runs/{job}?project={setup.project}"
        )
    return 0


def _failed(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 1
