"""Loading models from `.keras` files."""

import subprocess
import sys

from nsk import models


def test_custom_layers_are_registered_in_a_process_that_only_loads_models(tmp_path):
    """A worker of Beam imports little else."""
    model = models.build_model("resnet8", num_classes=3, image_size=8, survival_probability=0.5)
    model.save(tmp_path / "model.keras")
    program = (
        "import pathlib; from nsk.models.files import load_model; "
        f"print(load_model(pathlib.Path({str(tmp_path / 'model.keras')!r})).count_params())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == str(model.count_params()), done.stderr
