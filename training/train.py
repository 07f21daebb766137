"""Train a GPT-2 type language model on prepared tokens.

    python -m training.train DATA RUN [--smoke] [--resume] [--num-layers 8 ...]

Every field of recipe.py is a flag. RUN gets checkpoint.safetensors (to resume from) and best.safetensors
(the weights of the lowest validation loss), both after each evaluation. A run that was interrupted and
resumed computes the same losses and weights as one that was not, on the same machine and versions.

The model is Transformers' own GPT-2. Matrices are trained by Muon (Jordan et al. 2024): momentum, made
orthogonal by Newton-Schulz iterations; embeddings, norms and biases by AdamW (Loshchilov and Hutter 2019).
The learning rate rises in a straight line, then falls to zero in one. A corpus this small is read many
times, so there is dropout, and training stops when the validation loss no longer falls.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from training import checkpoint, token_files
from training.errors import RecipeError, errors_reported
from training.recipe import FULL, SMOKE, Recipe
from training.token_files import TokenFiles

LOG_INTERVAL = 10  # steps
MAX_GRADIENT_NORM = 1.0
ADAMW_BETAS = (0.9, 0.95)


def build_model(recipe: Recipe) -> Any:
    """GPT-2 with Transformers' initial weights, drawn from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    config = GPT2Config(
        vocab_size=recipe.vocab_size,
        n_positions=recipe.context,
        n_embd=recipe.hidden_size,
        n_layer=recipe.num_layers,
        n_head=recipe.num_heads,
        resid_pdrop=recipe.dropout,
        embd_pdrop=recipe.dropout,
        attn_pdrop=0.0,  # else attention has no fast kernel on a CPU
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    return GPT2LMHeadModel(config)


def build_optimizers(model: Any, recipe: Recipe) -> dict[str, Any]:
    matrices = [values for name, values in model.transformer.h.named_parameters() if values.ndim == 2]
    ids = {id(values) for values in matrices}
    others = [values for values in model.parameters() if id(values) not in ids]
    return {
        # The step is scaled to the size of AdamW's, so that it does not depend on a matrix's shape.
        "muon": torch.optim.Muon(
            matrices, lr=recipe.muon_lr, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
        "adamw": torch.optim.AdamW(others, lr=recipe.adamw_lr, betas=ADAMW_BETAS, weight_decay=0.0),
    }


def lr_factor(step: int, recipe: Recipe) -> float:
    """The share of the full learning rate at a step, counted from 0: up in a line, down to 0 in a line."""
    rising = (step + 1) / recipe.warmup_steps
    falling = (recipe.num_steps - step) / (recipe.num_steps - recipe.warmup_steps)
    return min(rising, falling)


class Run:
    """The state of training: all of it is in the checkpoint, the rest follows from recipe and tokens."""

    def __init__(self, recipe: Recipe, tokens: TokenFiles, folder: Path) -> None:
        if tokens.vocab_size != recipe.vocab_size:
            raise RecipeError(
                f"the tokens were prepared with a vocabulary of {tokens.vocab_size}, the recipe has "
                f"{recipe.vocab_size}; prepare and train both with --smoke, or both without"
            )
        self.recipe, self.tokens, self.folder = recipe, tokens, folder
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = build_model(recipe).to(self.device)
        self.optimizers = build_optimizers(self.model, recipe)
        self.step = 0  # steps done
        self.best_loss = math.inf
        self.best_step = 0
        self.train_s = 0.0  # seconds of training, evaluations not counted

    # One step

    def train_step(self) -> Any:
        """One step of both optimizers; the batch's mean loss in nats per token, still on the device."""
        recipe = self.recipe
        # What dropout draws is, like the batch, a function of the seed and the step alone.
        torch.manual_seed(recipe.seed + (self.step + 1) * (1 << 32))
        rows = torch.from_numpy(
            self.tokens.batch(
                self.step, batch_size=recipe.batch_size, context=recipe.context, seed=recipe.seed
            )
        ).to(self.device)
        self.model.train()
        loss = self.loss(rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
        factor = lr_factor(self.step, recipe)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = optimizer.defaults["lr"] * factor
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return loss.detach()

    def loss(self, rows: Any) -> Any:
        """The mean loss of predicting each token of rows [B, T + 1] but the first, in nats."""
        with torch.autocast(self.device, torch.bfloat16, enabled=self.recipe.dtype == "bfloat16"):
            logits = self.model(rows[:, :-1]).logits  # [B, T, V]
        return F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())

    def validation_loss(self) -> float:
        """In nats per token, over windows of the context that do not overlap."""
        context, batch_size = self.recipe.context, self.recipe.batch_size
        self.model.eval()
        ids = self.tokens.validation
        starts = range(0, len(ids) - context, context)
        windows = torch.stack(
            [torch.from_numpy(ids[start : start + context + 1].astype("int64")) for start in starts]
        )
        total = 0.0
        with torch.inference_mode():
            for rows in windows.split(batch_size):
                total += float(self.loss(rows.to(self.device))) * len(rows)
        return total / len(windows)

    # The loop

    def train(self) -> Iterator[str]:
        """Train to the end, or until the validation loss no longer falls; yields lines of progress."""
        recipe = self.recipe
        losses: list[Any] = []
        start_s = time.perf_counter()
        while self.step < recipe.num_steps and not self.is_stale:
            losses.append(self.train_step())
            if self.step % LOG_INTERVAL == 0:
                loss = float(torch.stack(losses).mean())  # waits for the device
                if not math.isfinite(loss):
                    raise RecipeError(
                        f"the loss is {loss} at step {self.step}; give a new folder and a lower --muon-lr "
                        "and --adamw-lr, or more --warmup-steps"
                    )
                seconds = time.perf_counter() - start_s
                self.train_s += seconds
                yield self.progress(loss, seconds, len(losses))
                losses, start_s = [], time.perf_counter()
            if self.step % recipe.eval_interval == 0 or self.step == recipe.num_steps:
                self.train_s += time.perf_counter() - start_s
                yield self.evaluate()
                losses, start_s = [], time.perf_counter()
        yield (
            f"done: {self.step} steps, {self.step * recipe.batch_tokens:,} tokens in {self.train_s:.0f} s; "
            f"the best is step {self.best_step}, loss {self.best_loss:.4f}"
        )

    @property
    def is_stale(self) -> bool:
        return self.step - self.best_step >= self.recipe.patience * self.recipe.eval_interval

    def evaluate(self) -> str:
        """Measure, keep the weights if they are the best so far, and write the checkpoint."""
        loss = self.validation_loss()
        is_best = loss < self.best_loss
        if is_best:
            self.best_loss, self.best_step = loss, self.step
            checkpoint.save(self.folder / "best.safetensors", self.weights(), self.about())
        checkpoint.save(self.folder / "checkpoint.safetensors", self.state(), self.about())
        return (
            f"step {self.step}  validation loss {loss:.4f}  {self.bits_per_byte(loss):.4f} bits per byte"
            f"{'  best' if is_best else ''}"
        )

    def bits_per_byte(self, loss: float) -> float:
        """Of the validation text, at a loss in nats per token."""
        return loss / math.log(2) * len(self.tokens.validation) / self.tokens.validation_bytes

    def progress(self, loss: float, seconds: float, num_steps: int) -> str:
        """The step, its learning rate, the mean loss and speed since the last line, and the time left."""
        steps_per_s = num_steps / seconds
        left_s = (self.recipe.num_steps - self.step) / steps_per_s
        return (
            f"step {self.step}/{self.recipe.num_steps}  loss {loss:.4f}  "
            f"lr {lr_factor(self.step - 1, self.recipe):.3f}  "
            f"{steps_per_s * self.recipe.batch_tokens:,.0f} tokens/s  {left_s / 60:.1f} min left"
        )

    # On disk

    def weights(self) -> checkpoint.Tensors:
        """By their names in Transformers, without the head, which is the token embedding."""
        return {name: values for name, values in self.model.state_dict().items() if name != "lm_head.weight"}

    def state(self) -> checkpoint.Tensors:
        tensors = {f"model.{name}": values for name, values in self.weights().items()}
        for kind, optimizer in self.optimizers.items():
            for index, moments in optimizer.state_dict()["state"].items():
                tensors |= {f"{kind}.{index}.{name}": values for name, values in moments.items()}
        return tensors

    def about(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.values(),
            "data_digest": self.tokens.digest,
            "step": self.step,
            "best_loss": self.best_loss,
            "best_step": self.best_step,
            "train_s": self.train_s,
            "device": torch.cuda.get_device_name() if self.device == "cuda" else "CPU",
            "bits_per_byte": self.bits_per_byte(self.best_loss),
        }

    def resume(self) -> None:
        """Go on from the run's checkpoint, or raise RecipeError where it is of another run."""
        path = self.folder / "checkpoint.safetensors"
        tensors, about = checkpoint.load(path)
        own = self.recipe.values()
        differences = [
            f"{name} was {about['recipe'].get(name)}, is {own[name]}"
            for name in own
            if about["recipe"].get(name) != own[name]
        ]
        if about["data_digest"] != self.tokens.digest:
            differences.append("the tokens are not those it was trained on")
        if differences:
            raise RecipeError(
                f"{path} is of another run: {'; '.join(differences)}; give the same flags and data, "
                "or a new folder"
            )
        states: dict[str, dict[int, dict[str, Any]]] = {kind: {} for kind in self.optimizers}
        weights = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "model":
                weights[rest] = tensor
            else:
                index, _, moment = rest.partition(".")
                states[kind].setdefault(int(index), {})[moment] = tensor
        self.model.load_state_dict({**weights, "lm_head.weight": weights["transformer.wte.weight"]})
        for kind, optimizer in self.optimizers.items():
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": states[kind], "param_groups": groups})
        self.step, self.train_s = about["step"], about["train_s"]
        self.best_loss, self.best_step = about["best_loss"], about["best_step"]


def open_run(data: Path, folder: Path, recipe: Recipe, is_resumed: bool) -> Run:
    """A new run, or one that goes on from its checkpoint."""
    exists = (folder / "checkpoint.safetensors").exists()
    if exists and not is_resumed:
        raise RecipeError(f"{folder} has a checkpoint already; go on with --resume, or give a new folder")
    run = Run(recipe, token_files.read(data, recipe.context), folder)
    if is_resumed:
        run.resume()
    else:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(data / "tokenizer.json", folder)
    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--smoke", action="store_true", help="the recipe SMOKE, for a trial on a CPU")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in RUN")
    for field in fields(Recipe):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(getattr(FULL, field.name)))
    args = parser.parse_args()
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # without it, CUDA's products are not deterministic
    torch.use_deterministic_algorithms(True)
    with errors_reported():
        given = {name: getattr(args, name) for name in FULL.values() if getattr(args, name) is not None}
        recipe = replace(SMOKE if args.smoke else FULL, **given)
        run = open_run(args.data, args.run, recipe, args.resume)
        print(f"{run.model.num_parameters():,} parameters, {recipe.dtype} on {run.about()['device']}")
        for line in run.train():
            print(line, flush=True)


if __name__ == "__main__":
    main()
