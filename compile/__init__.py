"""In which container the numbers travel: the Program, its targets, and the proof."""
