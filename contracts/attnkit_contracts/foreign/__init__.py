"""Code that is no plugin, as variants: functions, layers, and what is declared of them."""
