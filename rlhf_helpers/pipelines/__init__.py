"""RLHF as a cloud pipeline: Google's component, and a portable one over this package.

    google_models.py which base models Google's component names, and which are gone
    parameters.py    names, types and ranges, checked offline against a compiled pipeline
    vertex_rlhf.py   Google's `preview.llm.rlhf_pipeline`: parameters, steps, YAML
    stages.py        what our components do, each in its own process or container
    portable.py      our pipeline: one definition for this machine, Kubeflow and Vertex AI
    local.py         runs it here and publishes the models into `runs/`
    submit.py        sends either pipeline to Vertex AI
    graph.py         a picture of a compiled pipeline

Importing this package loads nothing heavy, but it needs the extra `cloud`.
"""

from rlhf_helpers.extras import require

require("cloud", "kfp", "google_cloud_pipeline_components")
