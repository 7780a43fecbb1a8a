"""Which small changes of the pure functions do the tests not notice?  By hand, many minutes:

    python -m tests.mutations [FILE ...] [--share 0.2]

Works in a copy.  Each mutant has one operator, comparison or number changed; the tests beside it
are run until one fails.  Survivors are printed with their line: each is equivalent, or wants a
test.
"""

import argparse
import ast
import os
import random
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

TARGETS = {  # file -> the tests that should notice
    "dpo/loss.py": ["tests/dpo/test_dpo_loss.py", "tests/dpo/test_losses.py"],
    "dpo/checks.py": ["tests/dpo/test_dpo_loss.py", "tests/dpo/test_losses.py"],
    "reward/loss.py": ["tests/reward/test_reward_loss.py"],
    "sft/loss.py": ["tests/sft/test_sft_loss.py"],
    "ppo/loss.py": ["tests/ppo/test_ppo_loss.py"],
    "ppo/advantages.py": ["tests/ppo/test_advantages.py"],
    "minigpt/kl.py": ["tests/minigpt/test_kl.py"],
    "minigpt/masks.py": ["tests/minigpt/test_masks.py", "tests/minigpt/test_logprobs.py"],
    "minigpt/metrics.py": ["tests/minigpt/test_metrics.py", "tests/dpo/test_dpo_loss.py"],
    "minigpt/logprobs.py": ["tests/minigpt/test_logprobs.py"],
    "minigpt/batching.py": ["tests/minigpt/test_batching.py", "tests/minigpt/test_logprobs.py"],
    "minigpt/sampling.py": ["tests/minigpt/test_sampling.py"],
    "lessons/limit.py": ["tests/lessons/test_limit.py"],
    "data/world.py": ["tests/data/test_world.py"],
}
SWAPS: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Lt: ast.LtE,
    ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.And: ast.Or, ast.Or: ast.And, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.FloorDiv: ast.Mult, ast.Pow: ast.Mult, ast.In: ast.NotIn}
SECONDS = 120  # of processor time; a mutant that takes longer counts as noticed


def mutants(source: str) -> Iterator[tuple[int, str, str]]:
    """(line, what was changed, mutated source) for every single change."""
    count = sum(1 for _ in _sites(ast.parse(source)))
    for number in range(count):
        tree = ast.parse(source)
        node, kind, index = list(_sites(tree))[number]
        yield node.lineno, _change(node, kind, index), ast.unparse(tree)


def _sites(tree: ast.AST) -> Iterator[tuple[ast.AST, str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in SWAPS:
            yield node, "op", 0
        elif isinstance(node, ast.Compare):
            yield from ((node, "compare", i) for i, op in enumerate(node.ops) if type(op) in SWAPS)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not | ast.Invert):
            yield node, "unary", 0
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
            yield node, "number", 0


def _change(node: ast.AST, kind: str, index: int) -> str:
    if kind == "op":
        before, node.op = node.op, SWAPS[type(node.op)]()
        return f"{type(before).__name__} -> {type(node.op).__name__}"
    if kind == "compare":
        before, node.ops[index] = node.ops[index], SWAPS[type(node.ops[index])]()
        return f"{type(before).__name__} -> {type(node.ops[index]).__name__}"
    if kind == "unary":
        before, node.op = node.op, ast.UAdd() if isinstance(node.op, ast.USub) else ast.Not()
        if not isinstance(before, ast.USub):  # not x, ~x -> x, as a truth value or a mask
            node.operand = ast.UnaryOp(ast.Not(), node.operand) if isinstance(before, ast.Not) \
                else ast.UnaryOp(ast.Invert(), node.operand)
            node.op = before
        return f"{type(before).__name__} taken out"
    before, node.value = node.value, node.value + 1
    return f"{before} -> {node.value}"


def noticed(folder: Path, tests: list[str]) -> bool:
    """Whether a test fails, in a child process that has imported nothing of the project yet."""
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        sys.dont_write_bytecode = True  # two mutants within a second would share one .pyc file
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-o",
                            "addopts=--import-mode=importlib", *tests])
        os._exit(int(code != 0))
    return os.waitpid(child, 0)[1] != 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="*", help=f"of {', '.join(TARGETS)} (default: all)")
    parser.add_argument("--share", type=float, default=1.0, help="of the mutants, drawn at random")
    options = parser.parse_args()
    torch.set_num_threads(1)
    root = Path(__file__).parents[1]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "copy"
        shutil.copytree(root, folder, ignore=shutil.ignore_patterns(".git", "runs", "site"))
        for name in options.file or TARGETS:
            source = (root / name).read_text(encoding="utf-8")
            rng, found, survivors = random.Random(0), 0, 0
            for line, change, mutated in mutants(source):
                if rng.random() > options.share:
                    continue
                (folder / name).write_text(mutated, encoding="utf-8")
                found += 1
                if not noticed(folder, TARGETS[name]):
                    survivors += 1
                    print(f"  {name}:{line}: {change}: {source.splitlines()[line - 1].strip()}",
                          flush=True)
            (folder / name).write_text(source, encoding="utf-8")
            print(f"{name}: {found - survivors} of {found} mutants noticed", flush=True)


if __name__ == "__main__":
    main()
