"""Models of other packages that hold LSTMs, with random weights and random input, ready to be run.

`tests/models` compares each before and after `fused_lstm.convert`, `third_party.py` times it. Sizes
are the packages' defaults, or those that their documentation trains with. Nothing is downloaded.
The packages are the extra `models` of pyproject.toml; `make test-models` installs them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fused_lstm.training.vision import import_mnist

__all__ = ["MODELS", "Subject"]


@dataclass(frozen=True)
class Subject:
    """A model and how its package calls it.

    `infer` is a call as it comes when the model is used, `train` one whose outputs, all of a
    floating type, a loss is made of.
    """

    model: nn.Module
    infer: Callable[[], object]
    train: Callable[[], Sequence[Tensor]]


def recurrent_ppo() -> Subject:
    """sb3-contrib: actor and critic, an LSTM of 256 each; one step to act, 16 x 32 to learn."""
    from sb3_contrib import RecurrentPPO
    from sb3_contrib.common.recurrent.type_aliases import RNNStates

    policy = RecurrentPPO("MlpLstmPolicy", "CartPole-v1", device="cpu", seed=0).policy
    sequences, steps, hidden = 16, 32, policy.lstm_actor.hidden_size

    def states(batch: int) -> RNNStates:
        def pair() -> tuple[Tensor, Tensor]:
            return torch.zeros(1, batch, hidden), torch.zeros(1, batch, hidden)

        return RNNStates(pair(), pair())

    observations = torch.randn(sequences * steps, 4)
    actions = torch.randint(2, (sequences * steps,))
    starts = torch.zeros(sequences, steps)
    starts[:, 0] = 1  # as the rollout buffer cuts them: then the policy goes step by step
    starts = starts.flatten()
    one, alone, no_start = observations[:1], states(1), torch.zeros(1)
    many = states(sequences)
    return Subject(
        policy,
        lambda: policy(one, alone, no_start, deterministic=True),
        lambda: policy.evaluate_actions(observations, actions, many, starts),
    )


def _forecasting(kind: str, **options: Any) -> Subject:
    import pandas

    import_mnist()  # helps a torchvision of another build to be imported, by what comes next
    import pytorch_forecasting

    series, length = 64, 90
    frame = pandas.DataFrame(
        {
            "time": [t for _ in range(series) for t in range(length)],
            "series": [str(s) for s in range(series) for _ in range(length)],
            "value": torch.randn(series * length).cumsum(0).double().numpy(),
        }
    )
    dataset = pytorch_forecasting.TimeSeriesDataSet(
        frame,
        time_idx="time",
        target="value",
        group_ids=["series"],
        static_categoricals=["series"],
        time_varying_known_reals=["time"],
        time_varying_unknown_reals=["value"],
        min_encoder_length=30,
        max_encoder_length=60,
        max_prediction_length=20,
    )
    x, _ = next(iter(dataset.to_dataloader(train=True, batch_size=64, num_workers=0)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about hyperparameters that are modules
        model = getattr(pytorch_forecasting, kind).from_dataset(dataset, **options)

    def call() -> Sequence[Tensor]:
        return [model(x)["prediction"]]

    return Subject(model, call, call)


def temporal_fusion_transformer() -> Subject:
    """pytorch-forecasting: its own subclass of nn.LSTM as encoder and decoder; 64 x (60 + 20)."""
    return _forecasting("TemporalFusionTransformer", hidden_size=64, lstm_layers=2)


def recurrent_network() -> Subject:
    """pytorch-forecasting: its own subclass of nn.LSTM, two layers of 64; 64 x (60 + 20)."""
    return _forecasting("RecurrentNetwork", hidden_size=64, rnn_layers=2)


def easyocr_recogniser() -> Subject:
    """easyocr: the English recogniser, two bidirectional LSTMs of 256; 4 lines of 64 x 400."""
    import_mnist()  # as above
    from easyocr.model.vgg_model import Model

    model = Model(input_channel=1, output_channel=256, hidden_size=256, num_class=97)
    images = torch.randn(4, 1, 64, 400)

    def call() -> Sequence[Tensor]:
        return [model(images, None)]

    return Subject(model, call, call)


def deepar() -> Subject:
    """gluonts: DeepAR as its estimator builds it, two layers of 40; 32 series, hourly, 72 + 24."""
    import_mnist()  # as above
    from gluonts.torch.model.deepar.module import DeepARModel

    batch, context, prediction = 32, 72, 24
    model = DeepARModel("h", context, prediction, num_feat_dynamic_real=5, cardinality=[8])
    past = model._past_length
    inputs = {
        "feat_static_cat": torch.randint(8, (batch, 1)),
        "feat_static_real": torch.randn(batch, 1),
        "past_time_feat": torch.randn(batch, past, 5),
        "past_target": torch.rand(batch, past),
        "past_observed_values": torch.ones(batch, past),
        "future_time_feat": torch.randn(batch, prediction, 5),
    }
    target = {
        "future_target": torch.rand(batch, prediction),
        "future_observed_values": torch.ones(batch, prediction),
    }
    return Subject(
        model,
        lambda: model(**inputs, num_parallel_samples=20),
        lambda: [model.loss(**inputs, **target)],
    )


def stanza_lemmatiser() -> Subject:
    """stanza: a bidirectional LSTM of 100 on packed letters, an LSTMCell of 200; 50 words."""
    from stanza.models.common.seq2seq_constant import PAD_ID
    from stanza.models.common.seq2seq_model import Seq2SeqModel

    options = {"emb_dim": 50, "hidden_dim": 200, "num_layers": 1, "attn_type": "soft"}
    rates = {"emb_dropout": 0.5, "dropout": 0.5}
    model = Seq2SeqModel({**options, **rates, "vocab_size": 120, "max_dec_len": 50})
    lengths = torch.linspace(22, 3, 50).long()
    source = torch.randint(4, 120, (50, 22))
    mask = torch.arange(22) >= lengths.unsqueeze(1)
    source[mask] = PAD_ID
    written = torch.randint(4, 120, (50, 24))
    return Subject(
        model,
        lambda: model.predict_greedy(source, mask),
        lambda: [model(source, mask, written)[0]],
    )


MODELS: dict[str, Callable[[], Subject]] = {
    "sb3-contrib RecurrentPPO": recurrent_ppo,
    "pytorch-forecasting TemporalFusionTransformer": temporal_fusion_transformer,
    "pytorch-forecasting RecurrentNetwork": recurrent_network,
    "easyocr recogniser": easyocr_recogniser,
    "gluonts DeepAR": deepar,
    "stanza lemmatiser": stanza_lemmatiser,
}
