"""Child processes: how every program that holds somebody's model or template is started, asked and ended."""
