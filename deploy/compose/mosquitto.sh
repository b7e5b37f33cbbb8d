#!/bin/sh
# Runs mosquitto on the folder that `edgekit fleet broker-config mosquitto` wrote, and tells it when the service has put
# a new revocation list, rules or certificate there: mosquitto looks at them only when it gets a SIGHUP.
set -eu
folder=$1
look_s=${2:-5}
cd "$folder"

mosquitto -c mosquitto.conf &
broker=$!
trap 'kill "$broker" 2>/dev/null' TERM INT

state() {
    cksum acl crl.pem server.pem server.key
}

seen=$(state)
while kill -0 "$broker" 2>/dev/null; do
    sleep "$look_s" &
    wait $! || true
    # Half of a change is a change too: the other half is the next one.
    now=$(state) || continue
    if [ "$now" != "$seen" ]; then
        seen=$now
        kill -HUP "$broker" || true
    fi
done
wait "$broker"
