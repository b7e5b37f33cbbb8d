"""Run by `forms.py` in the Python that has TensorFlow: `weights.npz` and `train.npz` of this folder to `net.keras`, `saved`
and `lstm.keras`.
"""

import keras
import numpy as np

held = np.load("weights.npz")
image = keras.Input((8, 8, 1), name="x")
hidden = keras.layers.Conv2D(16, 3, padding="same", activation="relu")(image)
hidden = keras.layers.MaxPooling2D(2)(hidden)
hidden = keras.layers.Conv2D(32, 3, padding="same", activation="relu")(hidden)
hidden = keras.layers.Conv2D(32, 3, padding="same", activation="relu")(hidden)
scores = keras.layers.Dense(10, name="scores")(keras.layers.Flatten()(hidden))
net = keras.Model(image, scores)
arrays = []
for layer in (0, 3, 5):
    arrays += [held[f"{layer}.weight"].transpose(2, 3, 1, 0), held[f"{layer}.bias"]]
# Torch flattens channels first, Keras last.
dense = held["8.weight"].reshape(10, 32, 4, 4).transpose(2, 3, 1, 0).reshape(512, 10)
net.set_weights([*arrays, dense, held["8.bias"]])
net.save("net.keras")
net.export("saved", verbose=False)

keras.utils.set_random_seed(0)
train = np.load("train.npz")
rows = keras.Input((8, 8), name="x")
lstm = keras.Model(rows, keras.layers.Dense(10, name="scores")(keras.layers.LSTM(48)(rows)))
lstm.compile(keras.optimizers.Adam(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
lstm.fit(train["images"], train["labels"], batch_size=100, epochs=15, verbose=0)
lstm.save("lstm.keras")
