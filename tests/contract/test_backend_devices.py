"""Several devices, where a backend has a way of its own."""

import os
import subprocess
import sys

import numpy as np
import pytest
from contracts import BACKEND

PROGRAM = """
import sys, keras, jax, numpy as np
from contracts import data, distiller, weights
assert jax.device_count() == 2
if sys.argv[2] == "2":
    keras.distribution.set_distribution(keras.distribution.DataParallel())
keras.utils.set_random_seed(0)
images, labels = data(64)
made = distiller()
history = made.fit(images, labels, batch_size=32, shuffle=False, verbose=0).history
measured = made.evaluate(images, labels, batch_size=32, verbose=0, return_dict=True)
shards = {len(v.value.sharding.device_set) for v in made.model.weights}
assert shards == {int(sys.argv[2])}, shards
np.savez(sys.argv[1], *weights(made), loss=history["loss"][0], measured=measured["loss"])
"""


@pytest.mark.skipif(BACKEND != "jax", reason="tests/whole/test_replicas.py has those of TensorFlow")
def test_two_devices_of_jax_make_the_update_of_one(tmp_path):
    settings = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2",
    }
    found = []
    for devices in "12":
        path = tmp_path / f"{devices}.npz"
        command = [sys.executable, "-c", PROGRAM, str(path), devices]
        done = subprocess.run(command, capture_output=True, text=True, env=settings, check=False)
        assert done.returncode == 0, done.stderr
        found.append(np.load(path))
    one, two = found
    assert len(one.files) > 20
    for key in one.files:
        np.testing.assert_allclose(one[key], two[key], rtol=1e-4, atol=1e-5, err_msg=key)
