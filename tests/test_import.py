import subprocess
import sys


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_atnet_imports_no_torch():
    heavy = "[m for m in ('torch', 'timm', 'numpy', 'PIL', 'cyclopts') if m in sys.modules]"
    assert run(f"import sys, atnet; print({heavy})") == "[]"


def test_the_size_table_needs_no_torch():
    assert run("import sys, atnet; print(atnet.SIZES['xxxs'].kernel, 'torch' in sys.modules)") == "5 False"


def test_public_names_are_functions_whatever_was_imported_before():
    code = "import atnet.training.loop, atnet.inference.prediction, atnet.models.load, atnet.timm\n"
    names = "[getattr(atnet, name).__class__.__name__ for name in atnet.__all__ if name != 'SIZES']"
    assert run(f"{code}print({names})") == str(["function"] * 10)


def test_timm_knows_our_names_after_the_import():
    code = "import timm, atnet.timm; print(type(timm.create_model('atnet_xxxs', num_classes=7)).__name__)"
    assert run(code) == "ATNet"


def test_importing_changes_no_global_state():
    code = (
        "import torch; before = torch.initial_seed(), torch.get_num_threads(), torch.get_default_dtype()\n"
        "import atnet.training.loop\n"
        "print(before == (torch.initial_seed(), torch.get_num_threads(), torch.get_default_dtype()))"
    )
    assert run(code) == "True"


def test_former_names_of_modules_are_those_of_now_and_say_so():
    code = (
        "import warnings; warnings.simplefilter('error', DeprecationWarning)\n"
        "import importlib, atnet\n"
        "from atnet.moved import MOVED\n"
        "said = []\n"
        "for old, new in MOVED.items():\n"
        "    with warnings.catch_warnings(record=True) as caught:\n"
        "        warnings.simplefilter('always')\n"
        "        assert importlib.import_module(old) is importlib.import_module(new), old\n"
        "    said.append(any(f'{old} is now {new}' == str(one.message) for one in caught))\n"
        "from atnet.show.explain import maps_of\n"
        "print(all(said), len(said) > 30, maps_of.__module__)"
    )
    assert run(code) == "True True atnet.viz.explain"
