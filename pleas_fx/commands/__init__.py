"""What the commands of ``pleas-fx`` do, apart from reading the command line."""
