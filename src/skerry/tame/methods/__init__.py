"""The taming methods, one file each; `skerry.tame.register` finds them."""
