"""CAM, CLEAR and CLEAR-DR in functions that read like the papers' sections."""
