"""BirdStep around students as other people write them: the right gradient, or a word."""

import shutil
from collections import OrderedDict, namedtuple

import pytest
import torch
from helpers.strangers import (
    GROUPS,
    REFUSED,
    SLOWER,
    STRANGERS,
    WIDTH,
    Checkpointed,
    Net,
    apart,
    batch_of,
    by_double_backward,
    by_step,
    conv,
    made,
    normed,
)
from torch import nn

from bird import BirdStep, Gate
from bird.errors import StudentError
from bird.students import StudentOutput

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.nn.utils.weight_norm.*:FutureWarning",
    "ignore:torch.ao.quantization is deprecated:DeprecationWarning",
)


def both(build, dtype=torch.float64, **options):
    given = batch_of(0, dtype), batch_of(1, dtype)
    return by_step(*made(build, dtype), *given, **options), by_double_backward(*made(build, dtype), *given)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", STRANGERS)
def test_the_gradient_is_that_of_double_backward(name, recompute):
    assert apart(*both(STRANGERS[name], recompute=recompute)) < 1e-12


@pytest.mark.parametrize("name", SLOWER)
def test_what_has_no_forward_rule_goes_by_double_backward_which_is_said_once(name):
    build, operator = SLOWER[name]
    with pytest.warns(UserWarning, match=f"double backward from now on.*{operator}") as said:
        found, expected = both(build)
    assert len([each for each in said if "from now on" in str(each.message)]) == 1
    assert apart(found, expected) < 1e-12
    student, gate = made(build)
    step, given = BirdStep(student, gate, groups=GROUPS), (batch_of(0), batch_of(1))
    with pytest.warns(UserWarning, match="from now on"):
        step(*given)
    step(*given)  # warnings are errors


@pytest.mark.filterwarnings("ignore:Net. the gate's feedback is taken by double backward:UserWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_exact_way_is_refused_by_name(name):
    build, named = REFUSED[name]
    student, gate = made(build)
    step, before = BirdStep(student, gate, groups=GROUPS), gate.phi.clone()
    with pytest.raises(StudentError, match=named):
        step(batch_of(0), batch_of(1))
    assert torch.equal(gate.phi, before)


def in_float32(name):
    return pytest.param(STRANGERS[name], id=name)


@pytest.mark.parametrize("build", [in_float32(name) for name in ("LSTM", "LSTM that drops", "GRU", "spectral_norm")])
def test_in_float32_too_where_other_kernels_compute(build):
    assert apart(*both(build, torch.float32)) < 1e-4


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("mu1", [0.1, 1.0])
def test_a_checkpointed_student_looks_ahead_from_where_it_is_and_leaves_no_trace_of_the_meta_batch(mu1, recompute):
    found = {}
    meta = batch_of(1)
    meta.inputs.add_(5.0)  # elsewhere, so that its trace would be seen
    for again in (False, True):
        student, gate = made(lambda again=again: Checkpointed(again))
        gradient = by_step(student, gate, batch_of(0), meta, mu1=mu1, recompute=recompute)
        found[again] = [gradient, *student.buffers()]
    assert apart(found[True][0], found[False][0]) < 1e-12
    for one, two in zip(found[True][1:], found[False][1:], strict=True):
        torch.testing.assert_close(one, two)


def whole(student):
    return torch.compile(student, backend="aot_eager")


def inside(student):
    student.body.compile(backend="aot_eager")
    return student


def hidden(student):
    student.body.forward = torch.compile(student.body.forward, backend="aot_eager")
    return student


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    "compiled",
    [lambda student: torch.compile(student, backend="aot_eager"), inside, hidden],
    ids=["all", "inside", "hidden"],
)
def test_a_compiled_student_learns_what_the_eager_one_learns(compiled, recompute):
    found = []
    for wrap in (lambda student: student, compiled):
        torch._dynamo.reset()
        student, gate = made(normed)
        found.append(by_step(wrap(student), gate, batch_of(0), batch_of(1), recompute=recompute))
    assert apart(*found) < 1e-12


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's compiler needs one for C++")
def test_compiled_code_that_draws_in_its_own_way_is_refused():
    from torch._inductor import config

    torch._dynamo.reset()
    student, gate = made(STRANGERS["dropout"], torch.float32)
    given = batch_of(0, torch.float32), batch_of(1, torch.float32)
    with pytest.raises(StudentError, match="fallback_random"):
        by_step(torch.compile(student), gate, *given)
    torch._dynamo.reset()
    with config.patch(fallback_random=True):
        found = by_step(torch.compile(student), gate, *given)
    assert apart(found, by_step(student, gate, *given)) < 1e-4


Outputs = namedtuple("Outputs", ["logits", "aux_logits"])


class ModelOutput(OrderedDict):
    """As in transformers: a dict with attributes."""

    logits = property(lambda self: self["logits"])
    features = property(lambda self: self["features"])


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (lambda f, z: {"features": f, "logits": z}, "dict of features, logits"),
        (lambda f, z: ModelOutput(features=f, logits=z), "ModelOutput of features, logits"),
        (lambda f, z: (f, z, z), "tuple of 3"),
        (lambda f, z: (z, None), "NoneType"),
        (lambda f, z: Outputs(z, f), "Outputs of 2"),
        (lambda f, z: z, "Tensor"),
    ],
)
def test_an_answer_of_another_kind_is_refused_and_adapt_is_named(answer, named):
    class Other(Net):
        def forward(self, x):
            return answer(*super().forward(x))

    torch.manual_seed(0)
    student = Other(conv()).double()
    with pytest.raises(StudentError, match=rf"answer of Other: found .*{named}.*adapt="):
        BirdStep(student, Gate(WIDTH), groups=GROUPS)(batch_of(0), batch_of(1))
    net = Net(conv()).double()
    BirdStep(net, Gate(WIDTH).double(), groups=GROUPS, adapt=lambda a: StudentOutput(*a))(batch_of(0), batch_of(1))


class Half(Net):
    """Autocast as it should be: in the student. Its answer is what bfloat16 left."""

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


def test_autocast_belongs_into_the_student():
    student, gate = made(normed, torch.float32)
    given = batch_of(0, torch.float32), batch_of(1, torch.float32)
    expected = by_step(student, gate, *given)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(StudentError, match=r"around the step.*in its forward"):
        by_step(student, gate, *given)
    torch.manual_seed(0)
    half = Half(normed())
    assert half(given[0].inputs)[1].dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(by_step(half, gate, *given), expected, dim=0) > 0.95


@pytest.fixture
def one_process(tmp_path):
    """A process group of one."""
    from torch import distributed

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def sharded(student):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return fully_shard(student, mesh=init_device_mesh("cpu", (1,)))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("wrap", "named"),
    [
        (nn.parallel.DistributedDataParallel, "DistributedDataParallel"),
        (nn.DataParallel, "DataParallel"),
        (sharded, "DTensor|FSDPModule"),
    ],
)
def test_students_of_several_processes_are_refused(one_process, wrap, named):
    student, gate = made(normed)
    step = BirdStep(student, gate, groups=GROUPS)
    with pytest.raises(StudentError, match=rf"({named}).*torchrun"):
        BirdStep(wrap(student), gate, groups=GROUPS)
    if wrap is sharded:  # which changes the module itself
        with pytest.raises(StudentError, match="torchrun"):
            step(batch_of(0), batch_of(1))
