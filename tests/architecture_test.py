"""Imports go one way: which packages of nsk a module may import."""

import ast
from pathlib import Path

import nsk

ROOT = Path(nsk.__file__).parent
HEAVY = {"tensorflow", "keras", "tensorflow_datasets", "sklearn", "matplotlib"}
MAX_TOP_LEVEL_MODULES = 8

# Small modules without knowledge of the others, which all may import.
COMMON = {
    "nsk.errors",
    "nsk.hashing",
    "nsk.progress",
    "nsk.stopping",
    "nsk.units",
    "nsk.store.files",
    "nsk.distributed.batch_share",
}

# What each package or module may import beside COMMON; the longest matching name counts.
ALLOWED = {
    "nsk.errors": set(),
    "nsk.hashing": set(),
    "nsk.progress": set(),
    "nsk.stopping": set(),
    "nsk.units": set(),
    "nsk.noise": {"nsk.noise"},
    "nsk.config": {"nsk.config", "nsk.data.randaugment_table"},
    "nsk.store": {"nsk.store"},
    "nsk.distributed": {"nsk.distributed", "nsk.config.run"},
    "nsk.data": {"nsk.data", "nsk.noise", "nsk.config.data"},
    "nsk.data.randaugment_table": set(),
    "nsk.models": {"nsk.models", "nsk.noise"},
    "nsk.models.model_files": {"nsk.models", "nsk.store"},
    "nsk.training": {"nsk.training", "nsk.noise", "nsk.models", "nsk.distributed"},
    "nsk.evaluation": {
        "nsk.evaluation",
        "nsk.data.class_names",
        "nsk.data.image_folders",
        "nsk.distributed.compilation",
        "nsk.distributed.device_memory",
    },
    "nsk.evaluation.predictor": {"nsk.evaluation", "nsk.noise"},
    "nsk.evaluation.agreement": set(),
    "nsk.evaluation.class_metrics": set(),
    "nsk.evaluation.class_shares": set(),
    "nsk.evaluation.feature_distance": set(),
    "nsk.evaluation.metrics": {"nsk.evaluation.class_metrics"},
    "nsk.evaluation.criteria": {"nsk.evaluation.metrics"},
    "nsk.evaluation.calibration": {"nsk.evaluation.metrics"},
    "nsk.evaluation.robustness": {"nsk.evaluation.corruptions"},
    "nsk.evaluation.bootstrap": {"nsk.evaluation.metrics"},
    "nsk.evaluation.alexnet": set(),
    "nsk.evaluation.shard_predictor": {
        "nsk.evaluation",
        "nsk.data",
        "nsk.models.features",
        "nsk.models.label_noise",
        "nsk.models.model_files",
    },
    "nsk.pseudo": {"nsk.pseudo", "nsk.evaluation.prediction_files"},
    "nsk.pseudo.calibration": {"nsk.evaluation.calibration"},
    "nsk.pseudo.pool_comparison": {"nsk.evaluation.class_shares"},
    "nsk.pseudo.pool_report": {"nsk.pseudo.pool_comparison"},
    "nsk.pseudo.policies": {"nsk.pseudo.ranking", "nsk.pseudo.radix_selection"},
    "nsk.decisions": {
        "nsk.pseudo.pool_report",
        "nsk.evaluation.agreement",
        "nsk.evaluation.criteria",
        "nsk.evaluation.prediction_files",
        "nsk.store.folders",
    },
    "nsk.report": {
        "nsk.report",
        "nsk.data.class_names",
        "nsk.decisions",
        "nsk.config.config",
        "nsk.evaluation.class_metrics",
        "nsk.evaluation.prediction_files",
        "nsk.evaluation.calibration",
        "nsk.evaluation.corruptions.frost_textures",
        "nsk.evaluation.suites",
        "nsk.store",
    },
    "nsk.stages": {
        "nsk.stages",
        "nsk.config",
        "nsk.data",
        "nsk.distributed",
        "nsk.evaluation",
        "nsk.models",
        "nsk.noise",
        "nsk.pseudo",
        "nsk.store",
        "nsk.training",
    },
    "nsk.sweep": {
        "nsk.sweep",
        "nsk.config",
        "nsk.distributed",
        "nsk.evaluation",
        "nsk.models",
        "nsk.report.text_table",
        "nsk.stages",
        "nsk.store",
    },
    "nsk.sweep.grid": {"nsk.config"},
    "nsk.self_training": {"nsk.decisions", "nsk.stages", "nsk.store.folders"},
    "nsk.commands": {"nsk"},
    "nsk.main": {"nsk.commands", "nsk.config"},
}
# Who imports the modules that bring everything together.
IMPORTERS = {
    "nsk.main": set(),
    "nsk.commands": {"nsk.main"},
    "nsk.self_training": {"nsk.commands"},
    "nsk.stages": {"nsk.commands", "nsk.self_training", "nsk.sweep"},
    "nsk.report": {"nsk.commands", "nsk.sweep"},
    "nsk.sweep": {"nsk.commands"},
    "nsk.decisions": {"nsk.commands", "nsk.report", "nsk.self_training"},
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
                full_name = f"{node.module}.{alias.name}"
                yield full_name if full_name in MODULES else node.module


def imports_of(name):
    return set(imported(ast.parse(MODULES[name].read_text())))


def rule_of(name):
    while name and name not in ALLOWED:
        name = name.rpartition(".")[0]
    return name


def package_of(name):
    return ".".join(name.split(".")[:2])


def is_within(name, packages):
    return any(name == package or name.startswith(package + ".") for package in packages)


def test_every_module_has_a_rule():
    assert [name for name in MODULES if not rule_of(name)] == ["nsk"]
    assert set(MODULES) >= {*ALLOWED, *IMPORTERS, *COMMON}


def test_modules_import_only_what_they_may():
    forbidden = []
    for name in MODULES:
        if name == "nsk":
            continue
        allowed = ALLOWED[rule_of(name)] | COMMON
        ours = {module for module in imports_of(name) if is_within(module, {"nsk"})}
        ours.discard("nsk")  # Its version.
        forbidden += [
            f"{name} imports {module}" for module in ours if not is_within(module, allowed)
        ]
    assert not forbidden


def test_modules_that_bring_everything_together_are_imported_from_few_places():
    importers = {target: set() for target in IMPORTERS}
    for name in MODULES:
        for target in {package_of(module) for module in imports_of(name)} & IMPORTERS.keys():
            if package_of(name) != target:
                importers[target].add(package_of(name))
    assert importers == IMPORTERS


def test_commands_do_not_import_each_other():
    commands = {name for name in MODULES if name.startswith("nsk.commands.")}
    for name in commands:
        assert not imports_of(name) & commands - {"nsk.commands.preparation"}, name


def test_few_modules_are_at_the_top_level():
    top_level = [path.name for path in ROOT.glob("*.py") if path.name != "__init__.py"]
    assert len(top_level) <= MAX_TOP_LEVEL_MODULES


def test_every_package_says_what_it_is():
    for path in ROOT.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_nothing_imports_tools_or_tests():
    for name in MODULES:
        assert not any(is_within(module, {"tools", "tests"}) for module in imports_of(name)), name


def test_help_does_not_import_heavy_libraries():
    """Follows module-level imports from `nsk.main`; those in functions wait until work starts."""
    seen, waiting = set(), ["nsk.main"]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        tree = ast.parse(MODULES[name].read_text())
        for node in ast.walk(tree):
            is_type_checking = (
                isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            )
            if isinstance(node, ast.FunctionDef) or is_type_checking:
                node.body = []
        modules = set(imported(tree))
        assert not {module.partition(".")[0] for module in modules} & HEAVY, name
        waiting += [module for module in modules if module in MODULES]
    assert seen >= {"nsk.main", "nsk.config.config", "nsk.errors", "nsk.commands.plan"}


def test_only_ingestion_and_the_collected_results_name_the_sealed_truth():
    naming = {
        name
        for name, path in MODULES.items()
        if "sealed" in path.read_text() or "unlabeled_truth" in path.read_text()
    }
    assert naming == {"nsk.data.ingest", "nsk.report.collect"}
