"""Making a cut model good again: tasks, fine-tuning, distillation, calibration."""
