#!/bin/sh
# Installs the manual pages and the shell completions that the built programs print.
#   scripts/install-docs.sh BUILD-FOLDER SHARE-FOLDER PROGRAM...
set -eu
build=$1
share=$2
shift 2

man=$share/man/man1
bash=$share/bash-completion/completions
zsh=$share/zsh/site-functions
fish=$share/fish/vendor_completions.d
install -d "$man" "$bash" "$zsh" "$fish"
for program; do
    # A program without subcommands has options of the same names.
    case $program in
    vhost-net-backend)
        dashes=--
        "$build/$program" --man >"$man/$program.1"
        ;;
    *)
        dashes=
        "$build/$program" man --folder "$man"
        ;;
    esac
    "$build/$program" "${dashes}completions" bash >"$bash/$program"
    "$build/$program" "${dashes}completions" zsh >"$zsh/_$program"
    "$build/$program" "${dashes}completions" fish >"$fish/$program.fish"
done
