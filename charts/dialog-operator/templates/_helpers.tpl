{{/* The name of everything but the Lease: that of the release. The Lease is one a namespace: never two operators at work. */}}
{{- define "dialog-operator.name" -}}
{{- .Release.Name | trunc 53 | trimSuffix "-" }}
{{- end }}

{{/* ClusterRoles have no namespace to tell them apart. */}}
{{- define "dialog-operator.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "dialog-operator.name" .) }}
{{- end }}

{{- define "dialog-operator.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "dialog-operator.name" .) }}
{{- end }}

{{/* Labels that selectors use: they never change. */}}
{{- define "dialog-operator.selector" -}}
app.kubernetes.io/name: dialog-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "dialog-operator.labels" -}}
{{ include "dialog-operator.selector" . }}
app.kubernetes.io/component: operator
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}
