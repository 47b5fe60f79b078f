"""The shapes that peers are measured in: hidden, layers, heads, key-value heads, feed-forward, vocabulary; the same table stands in
engine/examples/support/mod.rs."""

SHAPES = {
    "10m": (256, 8, 4, 2, 704, 16384),
    "135m": (576, 30, 9, 3, 1536, 49152),
    "0.5b": (896, 24, 14, 2, 4864, 151936),
}
