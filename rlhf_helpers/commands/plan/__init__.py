"""The command `plan`: how much memory, time and money the stages of a scale will take."""
