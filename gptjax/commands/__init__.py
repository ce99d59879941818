"""The subcommands of `gptjax`: their options, checks and output."""
