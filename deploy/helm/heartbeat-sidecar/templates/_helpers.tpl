{{- /* Named templates, also for the charts of apps. Each takes this chart's context: there (index .Subcharts "heartbeat-sidecar"). */ -}}

{{- define "heartbeat-sidecar.name" -}}
{{- if contains "heartbeat-sidecar" .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-heartbeat-sidecar" (.Release.Name | trunc 45 | trimSuffix "-") -}}
{{- end -}}
{{- end -}}

{{- define "heartbeat-sidecar.selector" -}}
app.kubernetes.io/name: heartbeat-sidecar
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- /* The label that deploy/kubernetes/plain selects pods by. */ -}}
{{- define "heartbeat-sidecar.labels" -}}
heartbeat-sidecar: enabled
{{- end -}}

{{- /* An item of `initContainers`: a sidecar that starts before the app's containers and stops after them. */ -}}
{{- define "heartbeat-sidecar.native" -}}
{{ include "heartbeat-sidecar.container" . }}
  restartPolicy: Always
  lifecycle:
    # Starts the drain while the app is alive. SIGTERM comes after the app has ended.
    preStop:
      exec:
        command: [/heartbeat-sidecar, drain]
{{- end -}}

{{- /* Items of `volumes` for the container's mounts; empty without `config` and `volumes`. */ -}}
{{- define "heartbeat-sidecar.volumes" -}}
{{- if .Values.config }}
- name: heartbeat-sidecar
  configMap:
    name: {{ include "heartbeat-sidecar.name" . }}
{{- end }}
{{- with .Values.volumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* An item of `containers`. SIGTERM drains it, so it has no preStop. */ -}}
{{- define "heartbeat-sidecar.container" -}}
- name: heartbeat-sidecar
  image: "{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  env:
    {{- if .Values.config }}
    - name: HEARTBEAT_SIDECAR_CONFIG
      value: /etc/heartbeat-sidecar/sidecar.toml
    {{- end }}
    {{- if or .Values.upstream (not .Values.config) }}
    - name: HEARTBEAT_SIDECAR_UPSTREAM
      value: {{ .Values.upstream | default "http://127.0.0.1:8501" | quote }}
    {{- end }}
    - name: HEARTBEAT_SIDECAR_ADMIN
      value: 0.0.0.0:9600
    - name: TOKIO_WORKER_THREADS
      value: {{ .Values.workerThreads | quote }}
    {{- range $key, $value := .Values.settings }}
    - name: HEARTBEAT_SIDECAR_{{ eq $key "watchdog.mode" | ternary "watchdog" $key | replace "." "_" | upper }}
      value: {{ kindIs "float64" $value | ternary ($value | int64) $value | toString | quote }}
    {{- end }}
  ports:
    - name: hs-http
      containerPort: 8500
    - name: hs-admin
      containerPort: 9600
  startupProbe:
    httpGet:
      path: /livez
      port: hs-admin
    periodSeconds: 1
    failureThreshold: 30
  readinessProbe:
    httpGet:
      path: /readyz
      port: hs-admin
    periodSeconds: 5
  livenessProbe:
    httpGet:
      path: /livez
      port: hs-admin
    periodSeconds: 10
  securityContext:
    runAsNonRoot: true
    runAsUser: 65534
    runAsGroup: 65534
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    capabilities:
      drop: [ALL]
  {{- if or .Values.config .Values.volumeMounts }}
  volumeMounts:
    {{- if .Values.config }}
    # Mount the folder: a file mounted by subPath is never updated.
    - name: heartbeat-sidecar
      mountPath: /etc/heartbeat-sidecar
      readOnly: true
    {{- end }}
    {{- with .Values.volumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
  resources:
    {{- toYaml .Values.resources | nindent 4 }}
{{- end -}}
