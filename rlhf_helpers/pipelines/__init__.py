"""RLHF as a cloud pipeline: Google's component, and a portable one over this package.

    google_models.py base models and regions of Google's component, and which models are retired
    parameters.py    names, types and ranges, checked offline against a compiled pipeline
    vertex_rlhf.py   Google's `preview.llm.rlhf_pipeline`: parameters, steps, YAML
    stages.py        the work of our components, each in its own process or container
    components.py    our steps as KFP components
    portable.py      our pipeline: one definition for this machine, Kubeflow and Vertex AI
    local.py         runs ours here and publishes the models into `runs/`
    submit.py        sends either pipeline to Vertex AI
    graph.py         a picture of a compiled pipeline

Importing this package loads nothing heavy, but it needs the extra `cloud`.
"""

from rlhf_helpers.extras import require

require("cloud", "kfp", "google_cloud_pipeline_components")
