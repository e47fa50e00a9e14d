"""What is done with finished runs: metrics, tables, figures, comparisons."""
