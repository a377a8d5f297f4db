"""How near one image is to another: PSNR and SSIM of 8-bit images."""

import math

from scipy.ndimage import gaussian_filter

PEAK = 255
SIGMA, RADIUS = 1.5, 5
STABLE = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2


def psnr(x, y):
    """10 log10(255^2 / mean (x - y)^2) over all values of two uint8 tensors: dB; inf if they are equal."""
    error = (x.double() - y.double()).square().mean().item()
    return 10 * math.log10(PEAK**2 / error) if error else math.inf


def ssim(x, y):
    """Structural similarity of two images (C, H, W), uint8, H and W >= 11: mean over channels and positions.

    (2 m_x m_y + a) (2 v_xy + b) / ((m_x^2 + m_y^2 + a) (v_x + v_y + b)) with means m and (co)variances v
    under Gaussian windows of 11x11 and sigma 1.5, where they lie within the image.
    Raises ValueError for smaller images.
    Source: Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity" (2004).
    """
    if min(x.shape[1:]) <= 2 * RADIUS:
        raise ValueError(f"image of {x.shape[2]}x{x.shape[1]}: SSIM needs {2 * RADIUS + 1}x{2 * RADIUS + 1}")
    x, y = x.double().cpu().numpy(), y.double().cpu().numpy()

    def mean(z):
        return gaussian_filter(z, (0, SIGMA, SIGMA), radius=RADIUS)[:, RADIUS:-RADIUS, RADIUS:-RADIUS]

    mx, my, (a, b) = mean(x), mean(y), STABLE
    vx, vy, vxy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    return float(((2 * mx * my + a) * (2 * vxy + b) / ((mx * mx + my * my + a) * (vx + vy + b))).mean())
