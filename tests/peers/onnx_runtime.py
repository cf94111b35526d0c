"""An ONNX file behind MLServer, as a runtime of its own (this file is imported by the server, not by the tests).

The model's folder names the file, and says what it takes: encoded images (BYTES) or pixels (FP32).
"""

import io

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import Base64Codec, NumpyCodec
from mlserver.types import InferenceResponse
from mlserver.utils import get_model_uri
from PIL import Image


class OnnxRuntime(MLModel):
    """All outputs of the network, or those that the request names."""

    async def load(self):
        """Open the file that model-settings.json names."""
        path = await get_model_uri(self._settings)
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload):
        """Vectors for the images of one request."""
        given = payload.inputs[0]
        if given.datatype == "BYTES":
            images = [Image.open(io.BytesIO(data)).convert("RGB") for data in Base64Codec.decode_input(given)]
            pixels = np.stack([np.asarray(image, np.float32).transpose(2, 0, 1) / 255 for image in images])
        else:
            pixels = NumpyCodec.decode_input(given).astype(np.float32)
        asked = [output.name for output in payload.outputs or []]
        names = asked or [output.name for output in self.session.get_outputs()]
        found = self.session.run(names, {self.session.get_inputs()[0].name: pixels})
        outputs = [NumpyCodec.encode_output(name, value) for name, value in zip(names, found, strict=True)]
        return InferenceResponse(model_name=self.name, outputs=outputs)
