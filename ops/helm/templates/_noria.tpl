{{/* What the release's objects are known by; `component` is the process. */}}
{{- define "noria.selector" -}}
app.kubernetes.io/name: noria
app.kubernetes.io/instance: {{ quote .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "noria.labels" -}}
{{ include "noria.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{/* The pod of a process: its `component`, `command`, `values`, what else its
     `container` has, and `env` where it gets no settings. */}}
{{- define "noria.pod" -}}
{{- $values := .root.Values -}}
{{- $hasCatalog := and $values.catalog (not .env) (ne .component "migrate") -}}
automountServiceAccountToken: false
enableServiceLinks: false  # their variables would look like settings
{{- with $values.serviceAccountName }}
serviceAccountName: {{ quote . }}
{{- end }}
{{- with $values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ quote . }}
  {{- end }}
{{- end }}
# In place of compose's `init`: no process is number 1, which would be deaf to signals and have zombies.
shareProcessNamespace: true
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
{{- with .values.graceSeconds }}
terminationGracePeriodSeconds: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector: {{ toJson . }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{ toJson . }}
{{- end }}
{{- if ne .component "migrate" }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "noria.selector" . | nindent 8 }}
{{- end }}
containers:
  - name: {{ .component }}
    {{- $tag := $values.image.tag | default .root.Chart.AppVersion }}
    image: {{ printf "%s%s%s" $values.image.repository (hasPrefix "sha256:" $tag | ternary "@" ":") $tag | quote }}
    imagePullPolicy: {{ $values.image.pullPolicy }}
    command: {{ splitList " " .command | toJson }}
    {{- if .env }}
    env: {{- toYaml .env | nindent 6 }}
    {{- else }}
    envFrom:
      - secretRef: {name: {{ quote $values.secret.name }}}
    {{- if or $values.settings $hasCatalog }}
    env:
      {{- range $name, $value := $values.settings }}
      - name: {{ $name }}
        value: {{ $value | quote }}
      {{- end }}
      {{- if $hasCatalog }}
      - name: NORIA_CATALOG
        value: /etc/noria/catalog.yaml
      {{- end }}
    {{- end }}
    {{- end }}
    {{- with .port }}
    ports:
      - name: http
        containerPort: {{ . }}
    {{- end }}
    {{- with .container }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    resources: {{- toYaml .values.resources | nindent 6 }}
    securityContext:
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      capabilities: {drop: [ALL]}
    volumeMounts:
      - name: tmp
        mountPath: /tmp
      {{- if $hasCatalog }}
      - name: catalog
        mountPath: /etc/noria/catalog.yaml
        subPath: catalog.yaml
        readOnly: true
      {{- end }}
      {{- if $values.secret.files }}
      - name: files
        mountPath: /etc/noria/files
        readOnly: true
      {{- end }}
volumes:
  - name: tmp
    emptyDir: {medium: Memory, sizeLimit: {{ .values.tmp }}}
  {{- if $hasCatalog }}
  - name: catalog
    configMap: {name: {{ .root.Release.Name }}-catalog}
  {{- end }}
  {{- with $values.secret.files }}
  - name: files
    secret: {secretName: {{ quote . }}}
  {{- end }}
{{- end }}
