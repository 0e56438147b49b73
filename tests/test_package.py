"The package as a user gets it: exported from the notebooks, free of undefined names, whole as a wheel."
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(*command, cwd, **environment):
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**os.environ, **environment},
        capture_output=True, text=True, check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_package_is_what_the_notebooks_export(tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("nbs", "perceiver_moe_diffusion"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("settings.ini", "_quarto.yml", "README.md"):
        shutil.copy(ROOT / name, copy / name)
    run(Path(sys.executable).parent / "nbdev_export", cwd=copy)
    modules = {p.relative_to(folder / "perceiver_moe_diffusion") for folder in (ROOT, copy)
               for p in (folder / "perceiver_moe_diffusion").rglob("*.py")}
    for name in sorted(modules):
        exported, committed = (folder / "perceiver_moe_diffusion" / name for folder in (copy, ROOT))
        assert exported.read_text() == committed.read_text(), f"{name}: run nbdev_export"


def test_the_linter_finds_nothing_in_package_tests_and_notebooks():
    run(sys.executable, "-m", "ruff", "check", ".", cwd=ROOT)


def test_a_wheel_works_in_a_clean_environment(tmp_path):
    "Only the wheel and its dependencies are importable there: what is not packed is missed."
    source = tmp_path / "source"
    shutil.copytree(
        ROOT,
        source,
        symlinks=True,
        ignore=shutil.ignore_patterns(".git", "__pycache__", "*.egg-info", "build", ".venv"),
    )
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, source, cwd=tmp_path)
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env", cwd=tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    # The dependencies of this environment, but not what is installed here in editable form.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    wheel = next(tmp_path.glob("*.whl"))
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--no-deps",
        "--no-index",
        "--force-reinstall",
        wheel,
        cwd=tmp_path,
    )
    small = [
        "model.dim=32",
        "model.num_latents=4",
        "model.depth=1",
        "trainer.max_steps=3",
        "evaluation.samples_per_class=1",
        "evaluation.classifier_steps=5",
    ]
    printed = run(site.parents[2] / "bin" / "pmd-train", *small, "run_dir=run", cwd=tmp_path)
    assert printed.strip().splitlines()[-1] == "run folder: run"
    run(
        site.parents[2] / "bin" / "pmd-sample",
        "run=run",
        "label=3",
        "guidance_scale=3",
        "steps=4",
        "seed=0",
        "out=three.png",
        cwd=tmp_path,
    )
    run(site.parents[2] / "bin" / "pmd-sample", "model=mnist", "label=7", "steps=2", "out=seven.png", cwd=tmp_path)
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("three.png", "seven.png"))
    alone = ("import perceiver_moe_diffusion as package\n"
             "images = package.from_pretrained('digits').sample([1, 2], steps=2, seed=0)\n"
             "print(package.__file__, tuple(images.shape), sep='\\n')")
    where, shape = run(python, "-c", alone, cwd=tmp_path).splitlines()
    assert Path(where).is_relative_to(site) and shape == "(2, 1, 8, 8)"
