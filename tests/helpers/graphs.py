"""Small ONNX networks of images, with what real ones have: several outputs, metadata, fixed batches, quantised weights."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FEATURES, CLASSES = 16, 10


def network(path, outputs=("features",), *, batch="n", side="side", metadata=(), extra=(), names=(), seed=0):
    """Pixels (batch, 3, side, side) -> convolution, pool, tanh -> `features` (16), `logits` (10), `probabilities` (10),
    `unit` (features of length 1), `map` (8 channels); those in `outputs`, in that order, called as `names` says.

    `extra` changes what is computed: "mates" adds the batch's mean to every image, "noise" adds noise, "rigid" holds for
    one image alone.
    """
    draw, names = np.random.default_rng(seed), dict(names)
    weights = {
        "kernel": draw.normal(size=(8, 3, 3, 3)) / 3,
        "inner": draw.normal(size=(8, FEATURES)) / 2,
        "last": draw.normal(size=(FEATURES, CLASSES)),
    }
    nodes = [
        helper.make_node("Conv", ["pixels", "kernel"], ["conv"], strides=[2, 2]),
        helper.make_node("Relu", ["conv"], ["map"]),
        helper.make_node("GlobalAveragePool", ["map"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
    ]
    last, shapes = "flat", []
    if "mates" in extra:
        nodes.append(helper.make_node("ReduceMean", ["flat"], ["mean"], axes=[0], keepdims=1))
        nodes.append(helper.make_node("Add", ["flat", "mean"], ["mixed"]))
        last = "mixed"
    if "noise" in extra:
        nodes.append(helper.make_node("RandomNormalLike", [last], ["noise"], scale=0.1))
        nodes.append(helper.make_node("Add", [last, "noise"], ["noisy"]))
        last = "noisy"
    if "rigid" in extra:
        shapes.append(numpy_helper.from_array(np.array([1, 8], np.int64), "one"))
        nodes.append(helper.make_node("Reshape", [last, "one"], ["row"]))
        last = "row"
    nodes += [
        helper.make_node("MatMul", [last, "inner"], ["hidden"]),
        helper.make_node("Tanh", ["hidden"], ["features"]),
        helper.make_node("MatMul", ["features", "last"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
        helper.make_node("LpNormalization", ["features"], ["unit"], axis=1, p=2),
    ]
    nodes += [helper.make_node("Identity", [name], [names[name]]) for name in outputs if name in names]
    wide = {"features": [batch, FEATURES], "unit": [batch, FEATURES], "map": [batch, 8, "rows", "columns"]}
    told = [(names.get(name, name), wide.get(name, [batch, CLASSES])) for name in outputs]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [batch, 3, side, side])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in told],
        [*shapes, *(numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items())],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def quantised(path, source):
    """The same network with int8 weights, its activations scaled as they come (onnxruntime's dynamic quantisation)."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(str(source), str(path), weight_type=QuantType.QUInt8)
    return path


def run(path, pixels, output):
    """One output for pixels (n, 3, height, width), all at once, by onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run([output], {"pixels": np.asarray(pixels, np.float32)})[0]
