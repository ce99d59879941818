"""The subcommands of `gptjax`, one file each."""
