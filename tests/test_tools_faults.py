# Made from nbs/97_faults.ipynb by `pmd-dev tests`. Edit the notebook.
import ast
from pathlib import Path

import pytest

from perceiver_moe_diffusion.tools.faults import faults_of, plant


def kinds_of(line):
    "kind -> what the faults of that kind make of one line."
    found = {}
    for fault in faults_of(line):
        found.setdefault(fault.kind, []).append(plant(line, fault))
    return found


@pytest.mark.parametrize("line, kind, faulty", [
    ("y = a + b", "operator", ["y = (a - b)"]),
    ("y = a + b", "dropped term", ["y = (a)", "y = (b)"]),
    ("y = a / b", "swapped operands", ["y = (b / a)"]),
    ("y = d * (a - b)", "operator", ["y = (d / (a - b))", "y = d * ((a + b))"]),
    ("y = -x", "sign", ["y = (x)"]),
    ("y += x", "operator", ["y -= x"]),
    ("y += x", "dropped statement", ["pass"]),
    ("y = 3", "off by one", ["y = (2)", "y = (4)"]),
    ("y = 0.25", "constant", ["y = (0.5)"]),
    ("y = 0.0", "constant", ["y = (1.0)"]),
    ("y = True", "constant", ["y = False"]),
    ("y = x[a:b]", "off by one", ["y = x[(a + 1):b]", "y = x[a:(b + -1)]"]),
    ("y = range(n)", "off by one", ["y = range((n - 1))"]),
    ("y = x.mean(dim=-1)", "wrong axis", ["y = x.mean(dim=(-2))"]),
    ("y = x.mean(axis=0)", "wrong axis", ["y = x.mean(axis=(1))"]),
    ("y = a < b", "comparison", ["y = (a <= b)", "y = (a >= b)"]),
    ("y = a == b", "comparison", ["y = (a != b)"]),
    ("y = a and b", "operator", ["y = (a or b)"]),
    ("y = a and b", "dropped term", ["y = (a)"]),
    ("y = a if b else c", "negated condition", ["y = a if (not (b)) else c"]),
    ("y = not a", "negated condition", ["y = (a)"]),
    ("y = [x for x in a if x]", "negated condition", ["y = [x for x in a if (not (x))]"]),
    ("y = f(a, b, c)", "swapped arguments", ["y = (f(a, c, b))", "y = (f(b, a, c))"]),
    ("y = f(a, b=1)", "dropped argument", ["y = (f(a))"]),
    ("y = max(a, b)", "wrong function", ["y = (min(a, b))"]),
    ("f(a)", "dropped statement", ["pass"]),
    ("a, b = f", "swapped names", ["((b, a)) = f"]),
])
def test_each_kind_of_fault_is_planted(line, kind, faulty):
    assert sorted(kinds_of(line)[kind]) == faulty
    for text in (text for texts in kinds_of(line).values() for text in texts): ast.parse(text)


@pytest.mark.parametrize("line", [
    '"A docstring of 3 words and -1."', "__all__ = ['a', 'b']", "x: Array[3]", "def f(x: Array[3]) -> Array[-1]: ...",
    "from a import b", "raise ValueError(1 + 2)", "y = 'text'", "y = f'{1 + 2}'", "y = 'a' + b", "print(1 + 2)",
    "@lru_cache(maxsize=1)\ndef f(): ...", "class A(Protocol):\n    def f(self, n: int = 3): ...", "y = x",
])
def test_what_no_test_should_hold_on_to_is_left_alone(line):
    assert faults_of(line) == []


def test_of_a_check_only_the_condition_is_changed_or_the_whole_forgotten():
    line = 'require(a < b, f"a={a}", "less than " + str(b + 1), fix="3")'
    assert {fault.after for fault in faults_of(line)} == {"pass", "(a <= b)", "(a >= b)"}


def test_a_fault_knows_its_place_also_behind_letters_of_more_than_one_byte():
    source = 'class A:\n    def f(self, x):\n        "η² … ε"\n        μ = "η"; return x - 1\n'
    subtraction = next(fault for fault in faults_of(source) if fault.kind == "operator")
    assert (subtraction.where, subtraction.line, subtraction.before) == ("A.f", 4, "x - 1")
    assert plant(source, subtraction) == source.replace("x - 1", "(x + 1)")


def test_faults_that_look_the_same_are_numbered():
    found = [(fault.start, fault.nth) for fault in faults_of("y = 3 * (1 + 3)") if fault.after == "(4)"]
    assert found == [(4, 0), (13, 1)]


def test_every_fault_of_a_module_can_be_compiled_and_changes_it():
    source = Path(plant.__code__.co_filename).read_text(encoding="utf-8")
    tree, faults = ast.dump(ast.parse(source)), faults_of(source)
    assert len(faults) > 200 and faults == faults_of(source), "and they come in the same order each time"
    for fault in faults[::7]:
        assert ast.dump(ast.parse(plant(source, fault))) != tree
