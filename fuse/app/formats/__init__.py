"""Files with the results of a run of several searches; one file here for each format."""
