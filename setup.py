"The package's metadata live in settings.ini, which nbdev reads too; this file only hands them to setuptools."
from configparser import ConfigParser
from pathlib import Path

from setuptools import Distribution, find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(here / "settings.ini", encoding="utf-8")
about = config["DEFAULT"]
lab = about["lab_requirements"].split()
server_config = "etc/jupyter/jupyter_server_config.d"


class WithData(Distribution):
    "An editable installation asks `has_data`, which setuptools calls otherwise; without it `data_files` are left out."
    has_data = Distribution.has_data_files


setup(
    distclass=WithData,
    name=about["lib_name"],
    version=about["version"],
    description=about["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=about["author"],
    author_email=about["author_email"],
    url=about["git_url"],
    license="Apache-2.0",
    keywords=about["keywords"],
    python_requires=f">={about['min_python']}",
    packages=find_packages(include=[about["lib_path"] + "*"]),
    package_data={about["lib_name"]: ["py.typed", "conf/*.yaml", "conf/*/*.yaml", "conf/*/*/*.yaml", "pretrained/*/*"]},
    data_files=[(server_config, [f"{server_config}/{about['lib_name']}.json"])],  # `jupyter lab nbs` opens on the index
    install_requires=about["requirements"].split(),
    extras_require={"lab": lab, "dev": lab + about["dev_requirements"].split()},
    entry_points={
        "console_scripts": about["console_scripts"].split(),
        "nbdev": [f"{about['lib_name']}={about['lib_name']}._modidx:d"],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Education",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Typing :: Typed",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    zip_safe=False,
)
