"""Sequential MNIST with one command: ``python -m fused_lstm.training``.

An image becomes a sequence (28 rows, 784 pixels, or 784 pixels in one fixed random order), an LSTM
reads it, and a linear layer names the digit from the last hidden state. The files, in the order in
which one run goes through them: ``cli`` (settings), ``data`` and ``download`` (images), ``recipes``
and ``model`` (what is trained, and how), ``loop`` (training), ``distributed`` (several processes),
``checkpoint`` and ``files`` (what survives a kill), ``report`` (plot and figures).

Nothing here is needed to use ``fused_lstm.LSTM``; it wants torchvision, scikit-learn, matplotlib
and tqdm beside torch.
"""

__all__ = ["TrainingError"]


class TrainingError(Exception):
    """A condition the user can mend; the command prints it as one line and exits with code 1."""
