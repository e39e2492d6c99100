"""What of the vLLM generator can be known without an engine."""

from pathlib import Path

import pytest

from models.explain.engine_options import Dtype, engine_dtype
from models.explain.evidence import EMPTY
from models.explain.generator import GeneratorError, ReasonRequest
from models.explain.vllm_generator import VllmGenerator


@pytest.mark.parametrize(
    ("dtype", "cuda", "flags", "expected"),
    [
        ("auto", False, {"avx2"}, "float32"),
        ("auto", False, {"avx2", "avx512_bf16"}, "bfloat16"),
        ("auto", False, {"amx_bf16"}, "bfloat16"),
        ("auto", True, set(), "bfloat16"),
        ("float16", True, set(), "float16"),
        ("float32", False, {"avx512_bf16"}, "float32"),
    ],
)
def test_the_number_format_follows_the_hardware(dtype: Dtype, cuda: bool, flags: set[str], expected: str) -> None:
    assert engine_dtype(dtype, cuda=cuda, cpu_flags=frozenset(flags)) == expected


async def test_a_folder_without_a_model_is_named_and_nothing_is_started(tmp_path: Path) -> None:
    generator = VllmGenerator(tmp_path)
    with pytest.raises(GeneratorError, match=r"config\.json"):
        await generator.start()
    assert generator.child_pids() == [] and not await generator.healthy()
    await generator.close()


async def test_asking_before_the_start_is_an_error_of_the_generator(tmp_path: Path) -> None:
    with pytest.raises(GeneratorError, match="not been started"):
        await VllmGenerator(tmp_path).generate(ReasonRequest(EMPTY))
