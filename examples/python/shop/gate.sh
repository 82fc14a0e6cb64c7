#!/bin/sh
# gate.sh APP: starts it, sends it orders, and fails if its key is then anywhere but in an arena.
set -eu
python "$1" >shop.log 2>&1 &
shop=$!
trap 'kill $shop' EXIT
python load.py
malloc-arena audit --secret-file key --html residue.html --pid $shop
