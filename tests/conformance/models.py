"""Architectures of `transformers`, built small from their configuration with random weights, as a user would give them:
`models.py:resnet` and so on. `INPUTS` says what each takes.
"""

import torch
import transformers as hf
from torch import nn

IMAGE = {"pixel_values": ([1, 3, 64, 64], "float32")}
TEXT = {"input_ids": ([1, 16], "int64"), "attention_mask": ([1, 16], "int64")}
INPUTS = {
    "resnet": IMAGE,
    "mobilenet_v2": IMAGE,
    "vit": IMAGE,
    "convnext": IMAGE,
    "segformer": IMAGE,
    "distilbert": TEXT,
    "whisper_encoder": {"input_features": ([1, 80, 100], "float32")},
    "wav2vec2": {"input_values": ([1, 4000], "float32")},
    "lstm_classifier": {"tokens": ([1, 20], "int64")},
}
VOCABULARY = 200


def resnet():
    return seeded(
        hf.ResNetForImageClassification,
        hf.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1], num_labels=10),
    )


def mobilenet_v2():
    config = hf.MobileNetV2Config(depth_multiplier=0.35, image_size=64, num_labels=10)
    return awake(seeded(hf.MobileNetV2ForImageClassification, config), IMAGE["pixel_values"][0])


def awake(model, shape):
    """The model with weights that let its signal through: in 52 layers of its own small random ones it dies out, the
    outputs would be constants, and parity no test. Batch norms get the statistics of random inputs, as training would.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None  # averages over all that it sees
    model.train()
    with torch.no_grad():
        for _ in range(4):
            model(torch.randn(16, *shape[1:]))
    return model.eval()


def vit():
    return seeded(
        hf.ViTForImageClassification,
        hf.ViTConfig(
            hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, image_size=64,
            patch_size=16, num_labels=10,
        ),
    )  # fmt: skip


def convnext():
    config = hf.ConvNextConfig(hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 2, 1], num_labels=10)
    return seeded(hf.ConvNextForImageClassification, config)


def segformer():
    return seeded(
        hf.SegformerForSemanticSegmentation,
        hf.SegformerConfig(
            depths=[1, 1, 1, 1], hidden_sizes=[16, 32, 40, 64], num_attention_heads=[1, 2, 5, 8],
            decoder_hidden_size=32, num_labels=5,
        ),
    )  # fmt: skip


def distilbert():
    config = hf.DistilBertConfig(vocab_size=VOCABULARY, dim=64, n_layers=3, n_heads=4, hidden_dim=128)
    return seeded(hf.DistilBertForSequenceClassification, config)


def whisper_encoder():
    config = hf.WhisperConfig(
        d_model=64, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=128, decoder_layers=1,
        decoder_attention_heads=4, max_source_positions=50,
    )  # fmt: skip
    return seeded(hf.WhisperModel, config).encoder


def wav2vec2():
    return seeded(
        hf.Wav2Vec2Model,
        hf.Wav2Vec2Config(
            hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
            conv_dim=(32,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
        ),
    )  # fmt: skip


class LstmClassifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 32)
        self.lstm = nn.LSTM(32, 48, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(96, 4)

    def forward(self, tokens):
        states, _ = self.lstm(self.embedding(tokens))
        return self.head(states[:, -1])


def lstm_classifier():
    torch.manual_seed(0)
    return LstmClassifier().eval()


def seeded(architecture, config):
    torch.manual_seed(0)
    return architecture(config).eval()
