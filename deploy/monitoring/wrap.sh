#!/bin/sh
# Prints prometheus-rule.yaml: both rule files as one object for the Prometheus operator. A test compares the file with them.
set -eu
cd "$(dirname "$0")"
cat <<'HEAD'
# Written by wrap.sh from recording-rules.yaml and alerts.yaml.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: flatfell
  namespace: flatfell-system
  labels:
    app.kubernetes.io/name: flatfell
spec:
  groups:
HEAD
cat recording-rules.yaml alerts.yaml | sed -e '/^#/d' -e '/^groups:$/d' -e 's/^/  /'
