"""How MLflow answers with an adapter. It keeps this file beside the adapter and runs it: nothing is pickled."""

from typing import Any

from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

MAX_TOKENS = 100


class Adapter(PythonModel):
    """The base model of `model_config["model"]` with the adapter of the artifact `adapters`."""

    def load_context(self, context: Any) -> None:
        from mlx_lm import load  # only where answers are wanted

        model = context.model_config["model"]
        self.model, self.tokenizer = load(model, adapter_path=context.artifacts["adapters"])[:2]

    def predict(self, context: Any, model_input: list[str], params: dict[str, Any] | None = None) -> list[str]:
        """An answer to each prompt."""
        from mlx_lm import generate

        prompts = map(self._prompt, model_input)
        return [generate(self.model, self.tokenizer, prompt, max_tokens=MAX_TOKENS) for prompt in prompts]

    def _prompt(self, text: str) -> str | list[int]:
        if self.tokenizer.chat_template is None:
            return text
        return self.tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)


set_model(Adapter())
