"""Speed, measured as ratios in one run, interleaved, medians of several; each file asks one question."""
