{{- define "flatfell.labels" -}}
app.kubernetes.io/name: flatfell
{{- end }}

{{/* ADDRESS:PORT; an IPv6 address in brackets. */}}
{{- define "flatfell.listen" -}}
{{- $address := .Values.metrics.address -}}
{{- if contains ":" $address }}{{ printf "[%s]" $address }}{{ else }}{{ $address }}{{ end }}:{{ .Values.metrics.port }}
{{- end }}

{{/* Where the kubelet asks: what listens on all addresses listens on the loopback one. */}}
{{- define "flatfell.probed" -}}
{{- $address := .Values.metrics.address -}}
{{- if eq $address "0.0.0.0" }}127.0.0.1{{ else if eq $address "::" }}::1{{ else }}{{ $address }}{{ end }}
{{- end }}

{{- define "flatfell.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{/* What was set, by environment variable. */}}
{{- define "flatfell.settings" -}}
{{- $settings := dict
      "FLATFELL_ANTI_SPOOFING" .Values.antiSpoofing.mode
      "FLATFELL_ANTI_SPOOFING_EXEMPT" (join "," .Values.antiSpoofing.exempt)
      "FLATFELL_API_SERVER" .Values.apiServer
      "FLATFELL_CNI_BIN_DIR" (ternary .Values.cni.binDir "" (and .Values.cni.enabled (ne .Values.cni.binDir "/opt/cni/bin")))
      "FLATFELL_CNI_CONFLIST" (ternary .Values.cni.conflist "" .Values.cni.enabled)
      "FLATFELL_CNI_ON_UNAVAILABLE" .Values.cni.onUnavailable
      "FLATFELL_CNI_TIMEOUT" .Values.cni.timeout
      "FLATFELL_ESTABLISHED" .Values.established
      "FLATFELL_EVENTS" (ternary "true" "" .Values.events)
      "FLATFELL_FLOW_LOG" .Values.flowLog.output
      "FLATFELL_FLOW_LOG_POD_RATE" (toString .Values.flowLog.podRate)
      "FLATFELL_FLOW_LOG_RATE" (toString .Values.flowLog.rate)
      "FLATFELL_LOG_FORMAT" .Values.log.format
      "FLATFELL_LOG_LEVEL" .Values.log.level
      "FLATFELL_METRICS_SERIES_MAX" (int .Values.metrics.seriesMax)
      "FLATFELL_OWN_NODE_EGRESS" .Values.ownNodeEgress
      "FLATFELL_POD_BRIDGES" (join "," .Values.podBridges)
      "FLATFELL_POD_CIDRS" (join "," .Values.podCidrs)
      "FLATFELL_STARTUP_TAINT" .Values.startupTaint
      "FLATFELL_TABLES" .Values.tables
      "FLATFELL_TERMINATING" .Values.terminating
      "FLATFELL_UNKNOWN_PODS" .Values.unknownPods }}
{{- range $name, $value := $settings }}
{{- if $value }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}
{{- end }}
