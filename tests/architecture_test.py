"""Imports go one way: what a module of nsk may know of the others."""

import ast
from pathlib import Path

import nsk

ROOT = Path(nsk.__file__).parent
HEAVY = {"tensorflow", "keras", "tensorflow_datasets", "sklearn", "matplotlib"}

# What may be imported from anywhere: they say what went wrong, how far work has come and whose is
# what.
COMMON = {"nsk.errors", "nsk.progress", "nsk.files", "nsk.stopping", "nsk.share"}

# Those that know nothing of the others, and what little they share.
ALLOWED = {
    "nsk.errors": set(),
    "nsk.files": set(),
    "nsk.stopping": set(),
    "nsk.share": set(),
    "nsk.progress": set(),
    "nsk.noise.philox": set(),
    "nsk.distributed.compilation": set(),
    "nsk.noise": {"nsk.noise.philox"},
    "nsk.stage": set(),
    "nsk.settings": set(),
    "nsk.verify": {"nsk.stage"},
    "nsk.sections": {"nsk.settings"},
    "nsk.config": {"nsk.settings", "nsk.sections"},
    "nsk.pseudo.ranking": set(),
    "nsk.pseudo.select": {"nsk.pseudo.ranking"},
    "nsk.pseudo.calibration": set(),
    "nsk.pseudo.engine": set(),
    "nsk.pseudo.rows": {"nsk.pseudo.ranking", "nsk.pseudo.scores"},
    "nsk.pseudo.beam": {"nsk.pseudo.ranking"},
    "nsk.evaluation.metrics": set(),
    "nsk.evaluation.predict": {"nsk.distributed.compilation"},
    "nsk.data": {"nsk.data", "nsk.noise", "nsk.sections"},
    "nsk.models": {"nsk.models", "nsk.noise"},
    "nsk.training": {
        "nsk.training",
        "nsk.noise",
        "nsk.distributed.compilation",
        "nsk.models.blocks",
        "nsk.models.layers",
    },
    "nsk.pseudo.scores": {"nsk.pseudo"},
    "nsk.pseudo.score": {"nsk.pseudo", "nsk.data.records"},
    "nsk.pseudo.select_stage": {"nsk.pseudo", "nsk.data"},
    "nsk.pseudo.write": {"nsk.pseudo", "nsk.data"},
    "nsk.evaluation.suite": {"nsk.evaluation", "nsk.pseudo.scores"},
    "nsk.generation": {"nsk.stage"},
    "nsk.together": {"nsk.stage"},
    "nsk.report": {"nsk.stage", "nsk.generation", "nsk.pseudo.scores", "nsk.report"},
    "nsk.deciding": {"nsk.evaluation.metrics", "nsk.pseudo.scores"},
    "nsk.export": {"nsk.data.records"},
    "nsk.model_files": {"nsk.models", "nsk.stage", "nsk.data.pipeline", "nsk.evaluation.predict"},
}
# Those that bring the parts together.
KNOWS_ALL = {
    "nsk.self_training",
    "nsk.stages",
    "nsk.checks",
    "nsk.train_stage",
    "nsk.plan",
    "nsk.main",
}
# Who imports those in turn.
IMPORTED_BY = {
    "nsk.main": set(),
    "nsk.self_training": {"nsk.main"},
    "nsk.stages": {"nsk.self_training"},
    "nsk.plan": {"nsk.self_training"},
    "nsk.checks": {"nsk.stages"},
    "nsk.train_stage": {"nsk.stages", "nsk.plan", "nsk.checks"},
}


def module_name(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imported(tree):
    """Names of the modules that a syntax tree imports, `from package import module` resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module


def imports_of(name):
    return set(imported(ast.parse(MODULES[name].read_text())))


def rule_of(name):
    while name and name not in ALLOWED:
        name = name.rpartition(".")[0]
    return name


def is_within(name, packages):
    return any(name == package or name.startswith(package + ".") for package in packages)


def test_every_module_has_a_rule():
    ruled = {name for name in MODULES if rule_of(name) or name in KNOWS_ALL}
    packages = {name for name, path in MODULES.items() if not path.read_text().strip()}
    assert set(MODULES) - ruled - packages == {"nsk"}
    assert set(MODULES) >= {*ALLOWED, *KNOWS_ALL}


def test_parts_know_only_what_they_may():
    broken = []
    for name in MODULES:
        if not rule_of(name):
            continue
        allowed = ALLOWED[rule_of(name)] | COMMON
        others = {one for one in imports_of(name) if is_within(one, {"nsk"})}
        broken += [f"{name} imports {one}" for one in others if not is_within(one, allowed)]
    assert not broken


def test_the_modules_that_know_all_are_imported_from_one_place_each():
    importers = {
        known: {name for name in MODULES if known in imports_of(name)} for known in IMPORTED_BY
    }
    assert importers == IMPORTED_BY


def test_nothing_imports_tools_or_tests():
    for name in MODULES:
        assert not any(is_within(one, {"tools", "tests"}) for one in imports_of(name)), name


def test_what_help_needs_does_not_import_heavy_libraries():
    """Follows module-level imports from `nsk.main`; those in functions wait until work starts."""
    seen, waiting = set(), ["nsk.main"]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        tree = ast.parse(MODULES[name].read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                node.body = []
        modules = set(imported(tree))
        assert not {one.partition(".")[0] for one in modules} & HEAVY, name
        waiting += [one for one in modules if one in MODULES]
    assert seen >= {"nsk.main", "nsk.config", "nsk.errors"}


def test_only_ingest_and_the_summary_name_the_sealed_truth():
    naming = {
        name
        for name, path in MODULES.items()
        if "sealed" in path.read_text() or "unlabeled_truth" in path.read_text()
    }
    assert naming == {"nsk.data.ingest", "nsk.report.summary"}
