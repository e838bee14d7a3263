"""The compiler on every network people use: what holds, what it costs, what fails."""
