"""The losses of a training for TensorBoard, where that is installed: it is no dependency."""

from flow.folder import board_folder


def writer_class():
    """TensorBoard's SummaryWriter. Raises ValueError if it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError("-board needs TensorBoard: pip install tensorboard") from None
    return SummaryWriter


def open_board(folder, steps):
    """A SummaryWriter in a model folder, to be closed, of a training with so many steps behind it.

    What a training that was killed wrote of later steps is hidden: they come again.
    """
    return writer_class()(str(board_folder(folder)), purge_step=steps + 1 if steps else None)
