"""Training: data, objective, loop. Modules import torch; this file and settings.py do not."""
