"""The report page: one HTML file that opens anywhere, without a network and without scripts."""
